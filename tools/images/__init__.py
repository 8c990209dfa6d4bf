"""What the images weigh, how soon they are ready and what they hold: `python -m tools.images report`."""
