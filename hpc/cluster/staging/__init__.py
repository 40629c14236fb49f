"""`promof stage`: weights, policies, data and environment where compute nodes find them."""
