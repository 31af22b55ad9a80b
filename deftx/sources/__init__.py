"""Where bytes come from and how an address counts them: files, hub repositories at a commit, published folders.

What the bytes mean is not known here.
"""
