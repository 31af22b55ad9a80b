"""What is searched, as data: the YAML schema, how a file becomes a space, and a combination of its settings; no
stages.
"""
