"""Jobs that make folders of files: preparing data, pretraining, reference sets; many of them as job arrays."""
