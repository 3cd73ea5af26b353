"""Train a small convolutional network on MNIST, and measure it on the test images.

Keras downloads MNIST (11 MB) the first time.
"""

import argparse

import keras

import ddp_gd

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--train", default="keras:mnist", help="or FILE.npz with arrays x and y")
parser.add_argument("--test", default="keras:mnist/test", help="likewise")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--bitwise", action="store_true", help="equal to the last bit")
options = parser.parse_args()

ddp_gd.init(bitwise=options.bitwise)
keras.utils.set_random_seed(1)

# One worker of each host downloads; all map the same file. Images stay bytes until they are used.
train, test = ddp_gd.load(options.train), ddp_gd.load(options.test)

model = keras.Sequential(
    [
        keras.Input((28, 28)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Reshape((28, 28, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
model.compile(
    optimizer=keras.optimizers.Adam(0.001),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
ddp_gd.fit(model, train.features, train.targets, batch_size=128, epochs=options.epochs, verbose=2)
results = ddp_gd.evaluate(model, test.features, test.targets, batch_size=500, verbose=0)
if ddp_gd.rank() == 0:
    print(f"test: loss {results['loss']:.4f}, accuracy {results['accuracy']:.4f}")
    print(f"fingerprint: {ddp_gd.fingerprint(model)}")
