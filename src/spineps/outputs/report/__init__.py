"""The report: one HTML file per scan that shows it with its masks, names and measurements."""
