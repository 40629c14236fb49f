"""One self-contained HTML page, its figures, and progress for people."""
