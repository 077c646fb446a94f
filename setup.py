"""Packaging. Versions below are floors; ``constraints.txt`` holds the exact tested set."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ["configs", "data_prep", "distill_core", "launcher"]

setup(
    name="zhengliu",
    version="0.1.0",
    description="Distils large Chinese encoders into small ones: raw text in, a Hugging Face student out",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]),
    package_data={
        "configs": ["*.yaml", "**/*.yaml"],
        "data_prep": ["sample_corpus/*.txt", "sample_corpus/*.md", "templates/*.j2"],
        "distill_core": ["**/*.j2", "**/*.html", "**/*.yaml"],
    },
    install_requires=[
        "datasets>=3",
        "deepspeed>=0.19",
        "huggingface_hub>=1",
        "jieba>=0.42,<0.43",
        "jinja2>=3",
        "matplotlib>=3.8",
        "numba>=0.60",
        "numpy>=1.26",
        "orjson>=3.9",
        "psutil>=5.9",
        "pyarrow>=15",
        "pydantic>=2.7",
        "PyYAML>=6",
        "rensa>=0.5,<0.6",
        "rich>=13",
        "rjieba>=0.1.13",
        "safetensors>=0.5",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "sentencepiece>=0.2.1",
        "seqeval>=1.2.2",
        "tensorboard>=2.16",
        "tokenizers>=0.22",
        "torch>=2.11",
        "transformers>=5.17,<6",
        "typer>=0.12",
        "xxhash>=3.4",
        "zstandard>=0.22",
    ],
    extras_require={
        "cluster": ["datatrove>=0.10"],
        "ltp": ["ltp_extension>=0.1.13"],
        "opencc": ["OpenCC>=1.2"],
        "dev": [
            "datatrove>=0.10",
            "hypothesis>=6",
            "ltp_extension>=0.1.13",
            "mypy>=1.11",
            "OpenCC>=1.2",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ray>=2.40",
            "ruff>=0.6",
            "textbrewer>=0.2.1.post1",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": ["distill = launcher.cli:main"]},
)
