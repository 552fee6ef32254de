"""Builds the only extension, engine._core. Everything else about the project is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

core = Extension(
    "engine._core",
    sources=["engine/_core.pyx"],
    include_dirs=["engine"],
    depends=sorted(glob("engine/native/*")),
    extra_compile_args=["-O2", "-g0", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wno-unused-function", "-fvisibility=hidden"],
    extra_link_args=["-Wl,-O1", "-Wl,-z,relro,-z,now", "-s"],
)

setup(ext_modules=cythonize([core], language_level=3))
