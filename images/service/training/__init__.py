"""Makes the model: reads the data, fits the network, writes the golden cases. Runs when the image is built."""
