"""The verb `report`: compare two runs by paired tests on the same images, or many runs in a table over seeds."""
