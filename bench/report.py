"""stub"""
def write(store, folder): pass
