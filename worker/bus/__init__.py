"""The bus door: aio-pika is here and nowhere else in the worker."""
