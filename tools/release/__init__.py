"""What a release is made of besides images: its version, its notes, the changes that automation proposes."""
