"""The networks around the cells."""
