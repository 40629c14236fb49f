"""The design loop: strategies that propose, a campaign that judges them under one budget, and how policies learn."""
