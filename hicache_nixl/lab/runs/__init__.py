"""The folder that a reproduction leaves behind: claims, tables, figures and provenance, written and read."""
