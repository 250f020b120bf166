"""What works on this machine: the doctor, and the test of a device."""
