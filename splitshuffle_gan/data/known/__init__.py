"""Known sets: where they come from, and how they become folders of scans."""
