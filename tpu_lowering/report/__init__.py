"""What a person is told: reports, commands, logs, dumps."""
