"""Training: the processes that learn together by DeepSpeed, and how they stop."""
