"""What runs beside each GPU: model, data and training loop of one rank."""
