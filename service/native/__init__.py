"""What is compiled, in C: its sources, and after a build the library.

The deformable attention for CPUs, label maps, and images at other sizes.
"""
