"""Two methods and a data set for noveltylab."""
