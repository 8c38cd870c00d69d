"""Files of many formats to scans: headers first, voxels on demand."""
