"""Devices and processes: the mesh of a run, made once, and which process writes files."""

from deepjax.parallel.hosts import is_main
from deepjax.parallel.mesh import Mesh, make_mesh

__all__ = ["Mesh", "is_main", "make_mesh"]
