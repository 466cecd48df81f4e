model A }
