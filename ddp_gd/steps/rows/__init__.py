"""What belongs to a row: its draws, the statistics it is normalised by, whom it meets."""
