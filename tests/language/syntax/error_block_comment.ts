/* hi */
model A
