"""Where bytes come from and how an address counts them: files, hub repositories at a commit, published folders; what
they mean is not known here.
"""
