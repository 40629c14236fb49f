"""`promof doctor`: what a run needs, examined here, from a compute node and among the tasks of a job."""
