"""What a campaign looks for and what a structure is worth: tasks, gates, rewards, diversity."""
