"""The end of the line: what a run found, on the terminal, as one HTML file, and as one JSON file."""
