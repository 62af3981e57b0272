"""The moving figures of the chapters: what they compute with mmlib, over a grid of controls."""
