"""tf_um_patch by itself, for other programs on a GPU: the same files as in whole_slide_cnn, which has them too."""

from setuptools import find_packages, setup

setup(
    name="tf_um_patch",
    version="0.1.0",
    description="Device memory that may exceed the device: a shim below programs, and operations that move it.",
    license="Apache-2.0",
    packages=find_packages(include=["tf_um_patch", "tf_um_patch.*"]),
    package_data={"tf_um_patch": ["py.typed", "csrc/*.h", "csrc/*/*"]},
    python_requires=">=3.7",
    extras_require={
        "figures": ["matplotlib"],
        "tensorflow": ["tensorflow-gpu==1.15.5; python_version < '3.8'", "tensorflow>=2.21; python_version >= '3.10'"],
    },
)
