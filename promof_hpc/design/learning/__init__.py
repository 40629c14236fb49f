"""How policies learn from rewards: advantages, objectives, and one learner a policy."""
