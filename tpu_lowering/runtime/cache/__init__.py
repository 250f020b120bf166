"""What outlives a process: compiled programs in a folder, and what identifies them."""
