"""How runs are compared: two by paired tests on the same images, many in a table over seeds."""
