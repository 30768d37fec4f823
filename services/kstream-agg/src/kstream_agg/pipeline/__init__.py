"""The consumer loop: batches in, results delivered, offsets committed behind them."""
