"""graph_tools by itself, for graphs of other projects: the same files as in whole_slide_cnn, which has them too."""

from setuptools import find_packages, setup

setup(
    name="graph_tools",
    version="0.1.0",
    description="Plans how a step of a TensorFlow graph runs under a memory limit, and makes it run so.",
    license="Apache-2.0",
    packages=find_packages(include=["graph_tools", "graph_tools.*"]),
    package_data={"graph_tools": ["py.typed"]},
    python_requires=">=3.7",
    install_requires=["numpy"],
    extras_require={
        "draw": ["matplotlib"],
        "tensorflow": ["tensorflow-gpu==1.15.5; python_version < '3.8'", "tensorflow>=2.21; python_version >= '3.10'"],
    },
)
