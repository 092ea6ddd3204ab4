"""What is measured: ours, its peers and the limits of the machine."""
