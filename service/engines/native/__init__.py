"""The compiled deformable attention for CPUs, in C: its sources, and after a build the library."""
