"""What runs have reached, side by side: figures of a run, studies, and the assessment of assembly."""
