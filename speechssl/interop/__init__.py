"""Models of other toolkits, in and out, without their packages.

Everywhere in this room `key` is the key that errors name, `where` the file or folder that they name, and `update` how
far the training had come.
"""
