"""Names the packages of a pack whose root folder is itself the package `lethe`."""

from setuptools import find_packages, setup

ROOMS = find_packages(include=["erasers*", "nodes*", "kernels*"])

setup(package_dir={"lethe": "."}, packages=["lethe", *(f"lethe.{room}" for room in ROOMS)])
