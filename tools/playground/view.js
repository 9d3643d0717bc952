// What both parts do when they are run, stepped or reset. A part has update(), draw(), buttons(),
// reset() and summary().

class View {
    constructor(status) {
        this.announce = announcer(status);
        this.clockwork = new Clockwork(
            () => this.update(),
            () => this.draw(),
            () => this.buttons(),
        );
    }

    toggle() {
        if (this.clockwork.running) {
            this.clockwork.pause();
            this.announce.say(`Paused. ${this.summary()}`);
        } else this.clockwork.run();
    }

    step() {
        this.clockwork.pause();
        this.update();
        this.draw();
        this.buttons();
        this.announce.say(this.summary());
    }

    restart() {
        this.clockwork.pause();
        this.reset();
        this.announce.say("Reset to the initial weights.");
    }
}
