# What CI does besides tests: bills of materials, scans, signatures, releases.
