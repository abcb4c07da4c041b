"""The lifetime ``pooled`` on an object store: the pages of a call in few objects, with their index in front.

A **segment** is an object: a header, a row for each page, then the pages (``segment``).  It is stored with one request, so
its pages and their index are there together or not at all.  The names of segments begin with the time, so one request lists
the new ones (``catalogue``).  Nothing is kept on any machine, and nothing is coordinated: servers that share a bucket find each
other's pages.
"""
