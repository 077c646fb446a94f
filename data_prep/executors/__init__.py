"""Who carries out the phases of a preparation: this machine's processes, or a cluster's."""
