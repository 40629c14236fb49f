"""Jobs that make folders of files: preparing data and pretraining; many of them as job arrays."""
