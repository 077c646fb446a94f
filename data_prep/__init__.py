"""First floor: raw files to memory-mapped shards; never imports torch."""

from data_prep.kernel_cache import install

install()
