"""The report as one HTML page: no network, no script, and all text of the user's escaped."""
